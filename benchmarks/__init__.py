"""Side-by-side measurements; each writes its run to results/."""
