"""Models made of models: each changes the denoiser of another and is a `ScoreModel` itself."""
