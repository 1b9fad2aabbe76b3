"""What is made of logits: the next tokens, and the log probabilities of a prompt's tokens."""
