"""How it is shown: drawing, tables, rendering."""
