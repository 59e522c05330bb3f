"""Knowledge unlearning: what a model is to forget, by which loss."""
