/** What a person can do about Postgres refusing the hub, by SQLSTATE (pure). */

const LOCKED =
  "a program holds the lock until it ends its transaction (SELECT pid, xact_start, state, query FROM pg_stat_activity WHERE xact_start IS NOT NULL ORDER BY xact_start)"

const REMEDIES: ReadonlyArray<readonly [states: RegExp, remedy: string]> = [
  [/^28/, "mend the role or its password in Postgres, or start the hub with another --database-url"],
  [/^3D000/, "mend the database's name in --database-url, or make the database"],
  [/^3F000/, "the schema schoolbus is gone: start the hub again, and it is made anew"],
  [/^42501/, "the hub's role has lost a right: doctor says which"],
  [/^53100/, "free space on Postgres' disk"],
  [/^55P03/, LOCKED],
  [/^53300/, "end connections, standbys or backups that nobody needs, or raise max_connections or max_wal_senders and restart Postgres"],
  [/^25006/, "Postgres takes no writes: it is a standby, or set to read only"],
]

/** Which of the many refusals that have one SQLSTATE, by its words or by the server's function, for the words may be in any language. */
const BY_MESSAGE: ReadonlyArray<readonly [states: RegExp, message: RegExp, remedy: string]> = [
  [
    /^28/,
    /pg_hba/,
    "let this host, user and database in by a line of pg_hba.conf, or, where it takes encrypted connections only, add ?sslmode=require to --database-url",
  ],
  [/^55000/, /not currently accepting connections|CheckMyDatabase/, "let connections in: ALTER DATABASE … ALLOW_CONNECTIONS true"],
  [/^55000/, /recovery|pg_current_wal/, "this server is a standby: give --database-url the address of the primary, or promote it"],
  [
    /^42501/,
    /session_replication_role/,
    "its sessions begin with session_replication_role = replica, which turns triggers and foreign keys off: ALTER ROLE … RESET session_replication_role (or ALTER DATABASE …, where it is set)",
  ],
  [
    /^53300/,
    /for (role|database)|InitializeSessionUserId|CheckMyDatabase/,
    "end what else is connected, or raise that limit: ALTER ROLE (or DATABASE) … CONNECTION LIMIT -1",
  ],
]

/** The role's sessions begin with triggers and foreign keys turned off, and it may not turn them on. */
export const isTurnedOff = ({ sqlstate, message }: { readonly sqlstate: string; readonly message: string }): boolean =>
  sqlstate === "42501" && message.includes("session_replication_role")

/** `"disk full (53100); free space on Postgres' disk"` */
export const withRemedy = (text: string, sqlstate: string, routine = ""): string =>
  [text, remedyOf(sqlstate, text, routine)].filter((part) => part !== null).join("; ")

/** null: it passes, or nothing general can be said. */
export const remedyOf = (sqlstate: string, message = "", routine = ""): string | null =>
  BY_MESSAGE.find(([states, messages]) => states.test(sqlstate) && messages.test(`${message} ${routine}`))?.[2] ??
  REMEDIES.find(([states]) => states.test(sqlstate))?.[1] ??
  null
