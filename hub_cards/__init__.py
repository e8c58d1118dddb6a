"""Cards for the Hugging Face Hub. No template is here yet: `Trainer` writes TRL's card into a trained folder."""
