"""Commands beside the evaluation: compare, plot, profile, selfcheck."""
