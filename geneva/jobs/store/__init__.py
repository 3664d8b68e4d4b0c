"""Where runs and jobs are recorded: an SQL database, or a service that has one.

SQLAlchemy, Alembic and httpx come with the extra ``service``; nothing here is imported before a
store is asked for.
"""
