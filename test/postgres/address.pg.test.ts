/** Ways to a server that is not at 127.0.0.1 without a password: real hub processes and a real server. */
import { mkdtempSync, rmSync, writeFileSync } from "node:fs"
import { tmpdir } from "node:os"
import { join } from "node:path"
import { afterAll, beforeAll, expect, it } from "vitest"
import { type Cluster, startCluster } from "../../scripts/cluster.ts"
import { run as query } from "../support/postgres.ts"
import { killAll } from "../support/run.ts"
import { startHub } from "../support/processes.ts"
import { until } from "../support/until.ts"

/** For `localhost`, by itself, for a hundred years. */
const CERTIFICATE = `-----BEGIN CERTIFICATE-----
MIIBlTCCATugAwIBAgIUdaVXZFhWDUpghitw7RHEsda8aLAwCgYIKoZIzj0EAwIw
FDESMBAGA1UEAwwJbG9jYWxob3N0MCAXDTI2MTEyNjA4MDczOVoYDzIxMjYxMTAy
MDgwNzM5WjAUMRIwEAYDVQQDDAlsb2NhbGhvc3QwWTATBgcqhkjOPQIBBggqhkjO
PQMBBwNCAASCjlHHiPMSOHB3b5AiJ2NYnLaJU7X2rlAYM5TrvEEtU3GD9XUjo4pU
B+6ORhyCM2jy5RSYO0Je2Y81OUwEJ7k1o2kwZzAdBgNVHQ4EFgQUSs9+NHvnFNcl
Wgi5ti9Y6GJPIg4wHwYDVR0jBBgwFoAUSs9+NHvnFNclWgi5ti9Y6GJPIg4wDwYD
VR0TAQH/BAUwAwEB/zAUBgNVHREEDTALgglsb2NhbGhvc3QwCgYIKoZIzj0EAwID
SAAwRQIgOZBb17zw2UPlkq4MzZBzUjDnGdy9QanWlMX9m5a8ZAACIQDxBWph09C4
eqbTWNaebG3xmjipoDD7FLk6anL9NyfaPg==
-----END CERTIFICATE-----`
const KEY = `-----BEGIN PRIVATE KEY-----
MIGHAgEAMBMGByqGSM49AgEGCCqGSM49AwEHBG0wawIBAQQgM6ls8M/P7gKw2h6E
SnTCgfJLiJH20qq+pkw82HevtxKhRANCAASCjlHHiPMSOHB3b5AiJ2NYnLaJU7X2
rlAYM5TrvEEtU3GD9XUjo4pUB+6ORhyCM2jy5RSYO0Je2Y81OUwEJ7k1
-----END PRIVATE KEY-----`

const folder = mkdtempSync(join(tmpdir(), "schoolbus-address-"))
const authority = join(folder, "ca.pem")
const config = join(folder, "schoolbus.config.ts")
let cluster: Cluster
/** Over the socket, which stays open to everyone. */
let socket: (database?: string) => string

beforeAll(async () => {
  cluster = await startCluster({ fsync: false })
  socket = (database = "postgres") => `postgres://postgres@/${database}?host=${cluster.dir}&port=${cluster.port}`
  writeFileSync(authority, CERTIFICATE)
  writeFileSync(config, `export default { plugin: "pgoutput", tables: { pupils: { audience: { column: "school_id" } } } }`)
  const place = async (name: string, text: string) =>
    query(cluster.url(), `COPY (SELECT unnest(string_to_array('${text}', E'\\n'))) TO PROGRAM 'umask 077; cat > ${cluster.dir}/data/${name}'`)
  await place("server.crt", CERTIFICATE)
  await place("server.key", KEY)
  await place("pg_hba.conf", "local all all trust\nlocal replication all trust\nhostssl all all all trust\nhostssl replication all all trust")
  for (const database of ["ssl", "sock", "latin"])
    await query(cluster.url(), `CREATE DATABASE ${database} TEMPLATE template0 ENCODING '${database === "latin" ? "LATIN1" : "UTF8"}'`)
  for (const database of ["ssl", "sock", "latin"])
    await query(cluster.url(database), "CREATE TABLE pupils (id uuid PRIMARY KEY, school_id text, name text)")
  await query(cluster.url(), "ALTER SYSTEM SET ssl = on")
  await query(cluster.url(), "SELECT pg_reload_conf()")
}, 60_000)
afterAll(async () => {
  await killAll()
  await cluster?.remove()
  rmSync(folder, { recursive: true, force: true })
})

const hubAt = (url: string) => startHub(mkdtempSync(join(folder, "hub-")), config, url)
const streams = async (url: string) => {
  const hub = await hubAt(url)
  await until("stream", () => hub.log().includes("streaming from slot"))
  expect(await hub.stop()).toBe(0)
}

it("a server that is reached through its socket", () => streams(socket("sock")), 30_000)

it("a server that wants encryption, with a certificate of its own", async () => {
  const plain = `postgres://postgres@localhost:${cluster.port}/ssl`
  const refused = await hubAt(plain)
  expect([await refused.ended(), refused.log()]).toEqual([77, expect.stringContaining("add ?sslmode=require to --database-url")])
  await streams(`${plain}?sslmode=require`)
  await streams(`${plain}?sslmode=verify-full&sslrootcert=${authority}`)
  const doubted = await hubAt(`${plain}?sslmode=verify-full`)
  await until("doubt", () => /self.signed/.test(doubted.log()))
  await doubted.stop()
}, 60_000)

it("a database whose encoding has few signs", () => streams(socket("latin")), 30_000)
