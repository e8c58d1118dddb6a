"""Cards for the Hugging Face Hub, generated from result files, and pushing what they describe."""
