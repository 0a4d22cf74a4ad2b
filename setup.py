"""What pyproject.toml cannot say: a wheel carries directories of the checkout's top inside the package, where they clash with nobody's."""

from setuptools import find_packages, setup

CARRIED = {f"moon_ops.assets.{directory}": directory for directory in ("dags", "feature_repo", "models")}  # moon_ops.settings.ROOT

setup(
    packages=[*find_packages(include=["moon_ops*"]), "moon_ops.serving.web", *CARRIED],
    package_dir=CARRIED,
    package_data={"moon_ops.serving.web": ["*.html", "*.css", "*.js"], **{package: ["*.toml", "*.yaml"] for package in CARRIED}},
)
