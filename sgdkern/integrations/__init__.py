"""A probe in other people's training loops: one thin file a framework, imported only by those who use it.

In reading order:
    transformers: a callback for Hugging Face's Trainer.
    lightning: a callback for Lightning's Trainer.
    scalars: a record as names and numbers, for whatever draws curves (TensorBoard, Weights & Biases, Trackio, MLflow).
"""
