"""What a finished generator does: sheets, ONNX, a model card, serving and the registry. No Ray."""
