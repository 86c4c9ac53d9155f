"""Studies: what measures the engine, its parts and the machine; each prints or writes results."""
