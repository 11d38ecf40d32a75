"""Privacy of the class histograms: local differential privacy and secure aggregation.

`docs/privacy.md` says what each protects from whom, and what neither covers.
"""
