"""Home of the compiled libraries, which setup.py puts here and `sgdkern.ops` loads."""
