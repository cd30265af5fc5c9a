-- Run once by PostgreSQL's image, in an empty data folder; the database prefect is made by the image itself.
CREATE DATABASE mlflow;
