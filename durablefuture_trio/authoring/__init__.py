"""How workflows and activities are written: the decorators, their options, and what a call does."""
