"""Rankings as plots and pages."""
