"""What is done to a captured graph: constants, folding, forms for kernels, ONNX."""
