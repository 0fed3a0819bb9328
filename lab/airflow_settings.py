"""Write what an Airflow of a lab needs to start: airflow.cfg, logins and the environment of its processes.

Everything secret is in files of mode 0600 under AIRFLOW_HOME; the environment of the processes names paths only.
"""

from __future__ import annotations

import base64
import configparser
import dataclasses
import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from lab.config import PROJECT

APPROVERS = ("approver-1", "approver-2")
"""Who may approve a change in a lab; their role is the least that may answer."""
LOGINS = {"admin": "admin", "operator": "op", **dict.fromkeys(APPROVERS, "user"), "viewer": "viewer"}
"""User name to role of Airflow's simple auth manager, from the one who may do all to the one who only looks."""


@dataclass(frozen=True, kw_only=True)
class AirflowInstance:
    """Name one Airflow: where it lives, where it listens, what it runs.

    ``secret`` is the one generated value that every key and password of this instance is derived from.
    """

    home: Path
    port: int
    secret: str
    dags_folder: Path = PROJECT / "dags"
    plugins_folder: Path = PROJECT / "plugins"
    profile: Path | None = None
    parallelism: int = 6
    heartbeat_timeout_seconds: int = 300

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def connections_file(self) -> Path:
        return self.home / "connections.json"

    @property
    def logs(self) -> Path:
        return self.home / "logs"

    @property
    def database(self) -> Path:
        return self.home / "airflow.db"

    def process_log(self, name: str) -> Path:
        """Return the file that one of the four processes writes its output to."""
        return self.logs / "processes" / f"{name}.log"

    def on_port(self, port: int) -> AirflowInstance:
        """Return the same instance with its user interface on another port."""
        return dataclasses.replace(self, port=port)

    def password(self, user: str) -> str:
        """Return the password of a login, the same for the life of the lab."""
        return self._derive(f"password-{user}").hex()[:16]

    def _derive(self, purpose: str) -> bytes:
        return hashlib.sha512(f"{purpose}:{self.secret}".encode()).digest()

    def sections(self) -> dict[str, dict[str, str]]:
        """Return airflow.cfg as section to option to value; what is not named keeps Airflow's default."""
        return {
            "core": {
                "executor": "LocalExecutor",
                "dags_folder": str(self.dags_folder),
                "plugins_folder": str(self.plugins_folder),
                "load_examples": "False",
                # Each slot is a forked worker that idles; a procedure seldom has more than three steps at work.
                "parallelism": str(self.parallelism),
                # A run that is triggered through REST on a paused DAG stays queued for ever.
                "dags_are_paused_at_creation": "False",
                "fernet_key": base64.urlsafe_b64encode(self._derive("fernet")[:32]).decode(),
                "execution_api_server_url": f"{self.url}/execution/",
                "simple_auth_manager_users": ",".join(f"{user}:{role}" for user, role in LOGINS.items()),
                "simple_auth_manager_passwords_file": str(self.home / "passwords.json"),
            },
            "database": {"sql_alchemy_conn": f"sqlite:///{self.database}"},
            "api": {
                "host": "127.0.0.1",
                "port": str(self.port),
                "base_url": self.url,
                "secret_key": self._derive("secret-key").hex(),
            },
            # Airflow's own generated key has 24 bytes, and each token made with it costs a warning.
            "api_auth": {"jwt_secret": self._derive("jwt").hex()},
            "scheduler": {
                # How long a finished task is unseen when nothing else happens: most of the time between two tasks.
                "scheduler_idle_sleep_time": "0.25",
                # The sweep that ends deferrals past their time; 15 s would be added to every deadline.
                "trigger_timeout_check_interval": "2",
                "scheduler_health_check_threshold": "60",
                # A task whose process was killed counts as running for so long.
                "task_instance_heartbeat_timeout": str(self.heartbeat_timeout_seconds),
                # One that was killed in its first second has sent no heartbeat yet, and is found by this sweep alone.
                "orphaned_tasks_check_interval": str(self.heartbeat_timeout_seconds),
            },
            "workers": {
                # With the default of 5 s one deferred task in twelve whose trigger fires at once is failed falsely:
                # the scheduler hears of the parked worker only after the trigger has fired.
                "min_heartbeat_interval": "1",
                "execution_api_timeout": "30",
            },
            "dag_processor": {
                # A new file in dags/ is seen within this time; the default is 300 s.
                "refresh_interval": "5",
                "min_file_process_interval": "30",
                "parsing_processes": "1",
            },
            "logging": {
                "base_log_folder": str(self.logs),
                # The log servers are not started, because they can't be bound to loopback; logs are read from the
                # shared folder. The ports differ all the same, so that no other Airflow's server is asked.
                "worker_log_server_port": str(self.port + 1),
                "trigger_log_server_port": str(self.port + 2),
            },
            "secrets": {
                "backend": "airflow.secrets.local_filesystem.LocalFilesystemBackend",
                "backend_kwargs": json.dumps({"connections_file_path": str(self.connections_file)}),
            },
            "usage_data_collection": {"enabled": "False"},
        }

    def environment(self, surroundings: Mapping[str, str] | None = None) -> dict[str, str]:
        """Return the environment of the processes: the surroundings without other Airflow settings, plus ours."""
        surroundings = os.environ if surroundings is None else surroundings
        kept = {key: value for key, value in surroundings.items() if not key.startswith(("AIRFLOW_", "NEPHORAN_"))}
        for name in ("PYTHONPATH", "PYTHONDONTWRITEBYTECODE"):
            kept.pop(name, None)
        kept |= {
            "AIRFLOW_HOME": str(self.home),
            "AIRFLOW_CONFIG": str(self.home / "airflow.cfg"),
            "PYTHONUNBUFFERED": "1",
            "PYTHONWARNINGS": "ignore",
        }
        if self.profile is not None:
            kept["NEPHORAN_PROFILE"] = str(self.profile)
        return kept

    def write(self) -> None:
        """Write airflow.cfg and the logins' passwords, both 0600, and link the local settings.

        Safe to repeat: yes, every value is derived from the same secret.
        """
        for folder in (self.home, self.logs / "processes", self.home / "config"):
            folder.mkdir(parents=True, exist_ok=True)
        parser = configparser.ConfigParser(interpolation=None)
        # Airflow interpolates its file, so a literal % is written twice.
        parser.read_dict(
            {
                section: {option: value.replace("%", "%%") for option, value in options.items()}
                for section, options in self.sections().items()
            }
        )
        with open_private(self.home / "airflow.cfg") as stream:
            parser.write(stream)
        with open_private(self.home / "passwords.json") as stream:
            json.dump({user: self.password(user) for user in LOGINS}, stream)
        if not self.connections_file.exists():
            self.write_connections({})
        settings = self.home / "config" / "airflow_local_settings.py"
        settings.unlink(missing_ok=True)
        settings.symlink_to(PROJECT / "deploy" / "airflow" / "airflow_local_settings.py")

    def write_connections(self, connections: Mapping[str, Mapping[str, object]]) -> None:
        """Replace the connections that Airflow's secrets backend reads; tasks see them at once."""
        temporary = self.connections_file.with_suffix(".tmp.json")
        with open_private(temporary) as stream:
            json.dump(connections, stream, indent=1)
        temporary.replace(self.connections_file)


def open_private(path: Path) -> TextIO:
    """Open a file for writing that nobody but its owner can read, not even between creation and chmod."""
    path.unlink(missing_ok=True)
    return os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8")
