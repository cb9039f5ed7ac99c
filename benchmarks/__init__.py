"""What the README's and the guide's comparisons were measured with; one command per table."""
