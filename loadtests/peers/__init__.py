"""The same read, through this product and through what people use instead, on one server."""
