"""The study of alignment and answers: its protocol, planned runs, and the analysis of their results."""
