"""Experiments in a server: who gets which arm, what it changes, what is logged, and when a canary is rolled back."""
