"""`ahfal doctor`: whether a site's machine is ready to join a deployment."""

from ahfal_app.deployment.doctor.examination import Site, examine
from ahfal_app.deployment.doctor.finding import Finding, Verdict

__all__ = ["Finding", "Site", "Verdict", "examine"]
