"""Adapts a trained ONNX model to a measured budget: ONNX in, ONNX out."""
