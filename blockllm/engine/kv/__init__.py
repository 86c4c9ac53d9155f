"""Keys and values: pages, the prefix index over them, and the tensors behind them."""
