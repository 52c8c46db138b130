"""From public files to the arrays that training reads: sources, file formats, binarization, loading."""
