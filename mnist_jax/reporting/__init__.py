"""Tables, plots and pages of finished runs, and the progress of those in training."""
