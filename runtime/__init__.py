"""Online: opens a Bundle and answers requests with it."""
