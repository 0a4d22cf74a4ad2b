"""The encoder: a multimodal language model becomes an embedding model, and two ONNX graphs with a contract."""
