"""The study of alignment and answers: its protocol, the runs that it plans, and what is made of their figures."""
