-- Run once by the database's first start. Prefect and MLflow both migrate their own: they must not share one.
CREATE DATABASE prefect;
CREATE DATABASE mlflow;
