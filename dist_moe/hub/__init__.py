"""The Hugging Face hub: its names, its cache, downloads and pushes. No other room imports its client."""
