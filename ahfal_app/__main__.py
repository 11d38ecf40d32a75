"""`python -m ahfal_app` is `ahfal`."""

from ahfal_app.cli import main

if __name__ == "__main__":
    main()
