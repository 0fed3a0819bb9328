"""
# Backup

**Purpose.** Saves the system, configuration and data, encrypted so that only its recipients can open it, signed, and read
back. A backup exists when its signed manifest does; it counts as *checked* when every byte was read back.

**When to run, when not.** Every day at 02:30 UTC by itself, and by hand at any time, in every window and freeze. It reads the
system and writes into two buckets. While it runs, Weaviate goes on answering.

**Before you start.** `backup.recipients`, `backup.signers` and `backup.staging_bucket` in the profile; the connections
`object_store_backup`, `object_store_staging` and `openpgp_signing`; Weaviate with the module `backup-s3` for the same
staging bucket; the ServiceAccount of `deploy/rbac/40-backup.yaml`. The bucket of the backups should be versioned and locked.

**Parameters.** `type`: *full* is everything; *incremental* is what has changed since the newest checked backup, and Weaviate
building on its own backup before, where the server can (1.37); *auto*, which scheduled runs take, is full on Sundays, when
there is nothing to build on, and when the chain has `backup.longest_chain` links, else incremental; *config-only* leaves out
Weaviate, Prometheus and the knowledge base and counts nowhere as a backup of the data. `tag` is a word of yours; `keeping` says for how long it
is meant, beyond the 90 days that everything is kept.

`include_sources`, `exclude_sources` and the same for `namespaces` and `resources` make a part of a backup, in the way of
Velero's flags of these names: *include* takes only what it names, *exclude* all but that, and one of the two may be given for
each. Resources have their full names (`secrets`, `deployments.apps`); namespaces and resources concern the Kubernetes objects
only. A part is of the type *full* or *config-only*, its manifest and report say what was chosen, nothing is built on it, it
counts nowhere as a backup of the system, and retention keeps it for the 90 days and no longer.

**Steps.**

| step | meaning | if it fails |
|---|---|---|
| `check_request` | parameters, recipients' keys, signing key, buckets, cluster and Weaviate; chooses type and parent; skips what the type does not have | nothing was written; correct what the message names |
| `wait_operation` | a scheduled backup lets a running operation end, for an hour at most; then it is made all the same. The manifest says which operations were under way at any time of the backup | nothing was written; start it again |
| `wait_weaviate_backup` | Weaviate backs itself up into the staging bucket; waits for its turn, without a worker | there is no backup; the message has Weaviate's own reason |
| `capture_…` | one source each: read, compressed, encrypted and stored in one stream | nothing of it is stored; a source that may be missing is *failed* in the manifest instead |
| `release_staging` | takes Weaviate's files out of the staging bucket, whatever happened, once Weaviate's backup has ended or was cancelled; descriptors of a good one stay | files in clear still lie there: clear it when the bucket answers again; also when the report says that more may have come |
| `release_readers` | takes our helper pod and our snapshot out of the cluster where a step that reads was killed, or could not; beside the manifest, which does not wait for it | the backup is as good as its other steps say, and something of it is left: do what the message says, or clear the step |
| `record_manifest` | writes and signs the manifest | there is no backup; clear it when the cause is gone |
| `verify_stored_files` | reads every file back and compares it, then leaves the signed note *checked* | the message names the damaged file; the backup does not count |
| `report_operation` | JSON and HTML report | clear it: it only writes the report again |
| `verify_outcome` | red when any step failed | it is meant to fail: open the report |

| source | what | must be there |
|---|---|---|
| `kubernetes_objects` | every object of the system's namespaces, all custom resources and definitions, access rules; of an incremental one what was added or changed, and the names of what was deleted | yes |
| `weaviate` | the files of Weaviate's own backup, all collections; of tenants those that Weaviate takes in, and the report names the others: offloaded ones, and before 1.37 inactive ones | yes |
| `weaviate_facts` | version, nodes, schema, counts, known items, how much is found by vector | yes |
| `knowledge_base` | files on the volumes that the profile names, out of a pod that has them or by a helper pod; only in a full one | once the profile names any |
| `prometheus` | a snapshot, its blocks of the last day, where the profile names the pod; else that day by range queries, a sample a minute; only in a full one | no |
| `grafana_dashboards` | dashboards of all namespaces | no |

**Duration and blast radius.** A minute for a small system; with much data about as long as Weaviate's own backup and its
upload take. Weaviate uses up to half of its processors for it. Nothing in the cluster is
changed, but for what is taken away again: a snapshot in the data of Prometheus, and a helper pod where a volume is read by one.

**Verify.** The report says *backed-up*; the bucket has `manifest.json.asc` and `checked.json.asc` in the backup's folder.

**Chains.** An incremental backup is worth only what all links before it are worth: the manifest names its parent by digest,
and only a parent that was read back whole, as was its own chain, is built on. Weaviate's part of a chain needs the files of
all links for a restore. Where the staging bucket has lost the descriptors of the parent, Weaviate makes a full one inside
the incremental backup, and the manifest says so.

**Roll back.** Nothing to roll back. A run that dies leaves files without a manifest, which nothing counts. A run that was
deleted, or marked failed as a whole, may leave a snapshot in the data of Prometheus too: the report and the manifest of the
next full backup name every snapshot that is none of its own, and nothing deletes what may be somebody's. A helper pod ends by
itself, and the next backup that needs one replaces it.

**If it fails.** There is no backup of this run, and the one before still counts. Correct what the message names and run it again.
To clear a run, or a step of one, whose backup exists harms nothing: its steps go on from the manifest and write nothing again.
"""

from __future__ import annotations

from datetime import timedelta

from airflow.sdk import Param, dag

from nephoran_maintenance.groups.backup import CONNECTION, backup_steps
from nephoran_maintenance.operators.backup import ReportBackupOperator
from nephoran_maintenance.operators.backup_sources import SOURCES
from nephoran_maintenance.operators.notification import notify_failure
from nephoran_maintenance.operators.report import VerifyOutcomeOperator
from nephoran_maintenance.profile import load_profile

PROFILE = load_profile()
DEFAULTS = {"retries": 2, "retry_delay": timedelta(seconds=3)}
ALL_BUT = {
    "sources": "Sources of the backup",
    "namespaces": "Namespaces of the Kubernetes objects",
    "resources": "Resources by their full names, such as secrets or deployments.apps,",
}


def part_of(what: str, names: list[str] | None) -> dict[str, Param]:
    """Return the two parameters that choose of sources, namespaces or resources; empty lists take everything in."""
    item = {"type": "string", "enum": names} if names else {"type": "string", "maxLength": 300}
    ends = {"include": "that alone are taken in; empty: all", "exclude": "that are left out; empty: none"}
    return {
        f"{way}_{what}": Param(
            [],
            type="array",
            items=item,
            **({"examples": names} if names else {}),
            uniqueItems=True,
            section="A part of the backup, which counts nowhere as a whole one",
            title=f"{way.title()} {what}",
            description=f"{ALL_BUT[what]} {end}.",
        )
        for way, end in ends.items()
    }


@dag(
    dag_display_name="Backup",
    description="Save the system, configuration and data: encrypted, signed, read back",
    schedule="30 2 * * *",  # UTC
    catchup=False,
    max_active_runs=1,
    tags=["backup", "risk/read-only"],
    doc_md=__doc__,
    default_args=DEFAULTS,
    params={
        "type": Param(
            "full",
            type="string",
            enum=["full", "incremental", "auto", "config-only"],
            title="Type",
            description="Everything; what has changed since the backup before; whichever of the two is due; or everything "
            "but the data of Weaviate and Prometheus. Scheduled runs take auto.",
        ),
        "tag": Param(
            "",
            type="string",
            maxLength=63,
            pattern="^([a-z0-9]([-a-z0-9]*[a-z0-9])?)?$",
            title="Tag",
            description="A word of yours that the manifest keeps, such as before-move.",
        ),
        "keeping": Param(
            "daily",
            type="string",
            enum=["daily", "weekly", "monthly", "yearly"],
            title="Kept as",
            description="Which of the rules of retention it is meant for once it is older than everything that is kept.",
        ),
        **part_of("sources", list(SOURCES)),
        **part_of("namespaces", PROFILE.namespaces.of_the_system),
        **part_of("resources", None),
    },
)
def backup() -> None:
    _, verify_stored, release_readers = backup_steps(PROFILE)
    report_operation = ReportBackupOperator(task_id="report_operation", kubernetes_connection_id=CONNECTION)
    verify_outcome = VerifyOutcomeOperator(
        task_id="verify_outcome", kubernetes_connection_id=CONNECTION, retries=0, on_failure_callback=notify_failure
    )

    [verify_stored, release_readers] >> report_operation >> verify_outcome


backup()
