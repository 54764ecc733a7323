"""Quality experiments as code: arms of training, planning and healing, run on one data set and stored."""
