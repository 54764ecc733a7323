"""How many cores, machines and how much money a deployment needs, from what a server was measured to cost."""
