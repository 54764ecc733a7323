"""Any torch model as a stack of layers."""
