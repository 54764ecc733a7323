"""What the server stores of a user: one contract, three stores."""
