"""The experiments of params.yaml that tables, figures and claims know by name.

A project may have others: these are trained and evaluated alike, and the report lists them as further experiments.
Needs the standard library alone.
"""

from __future__ import annotations

BURDA_TABLE1, BURDA_TABLE2, BURDA_TABLE3 = "burda-table1", "burda-table2", "burda-table3"
"""Burda et al.: VAE and IWAE; trained on under the other objective; the same as the first on the fixed binarization."""
BURDA_FROM_SCRATCH = (BURDA_TABLE1, BURDA_TABLE3)
"""Those whose runs continue no others."""
EVERY_OBJECTIVE = "every-objective"
"""The objectives of Rainforth et al. in Burda's setting."""
RAINFORTH_TABLE1 = "rainforth-table1"
"""Rainforth et al.: every objective with M · K = 64."""
TWO_DIMENSIONAL = "two-dimensional"
"""Latent spaces that can be drawn."""
LATER_ESTIMATORS = "later-estimators"
PROTOCOL_ABLATION = "protocol-ablation"
MK_PLANE = "mk-plane"

KNOWN = (
    *(BURDA_TABLE1, BURDA_TABLE2, BURDA_TABLE3, EVERY_OBJECTIVE, RAINFORTH_TABLE1),
    *(TWO_DIMENSIONAL, LATER_ESTIMATORS, PROTOCOL_ABLATION, MK_PLANE),
)
