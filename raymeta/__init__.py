"""raymeta teaches a pretrained language model to learn a new NLP task from a handful of labelled examples."""

__version__ = "0.1.0"
