"""Numbers, figures and the report of a trained classifier."""
