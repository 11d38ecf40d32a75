"""The page of `ahfal watch`: how far a run is, and whom it waits for."""
