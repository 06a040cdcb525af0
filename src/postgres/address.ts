/**
 * Where Postgres is, as both drivers understand it: they read the same address each in its own way, and one of them knows neither
 * sockets nor certificates. It is read as libpq reads it: `postgres:///db?host=/var/run/postgresql`, `?sslmode=require`.
 */
import { readFileSync } from "node:fs"
import { userInfo } from "node:os"
import type postgres from "postgres"

export interface Tls {
  readonly rejectUnauthorized: boolean
  readonly ca?: string
  readonly cert?: string
  readonly key?: string
  /** The certificate may be of another name. */
  readonly checkServerIdentity?: () => undefined
}

export interface Address {
  /** A name, a number, or the folder of a socket: `"/var/run/postgresql"` */
  readonly host: string
  readonly port: number
  readonly user: string
  /** undefined: as the driver finds it (PGPASSWORD), or none. */
  readonly password: string | undefined
  readonly database: string
  readonly tls: Tls | false
}

export class AddressRefused extends Error {}

const DEFAULT_PORT = 5432
const SIGNS = "in a password @ : / ? # % are written as %40 %3A %2F %3F %23 %25"

/** A certificate on whose signer nobody agreed keeps listeners off, and no more; `verify-full` keeps off everyone. */
const tlsOf = (mode: string, file: (name: string) => string | undefined, isSystem: boolean): Tls | false => {
  const ca = isSystem ? undefined : file("sslrootcert")
  const [cert, key] = [file("sslcert"), file("sslkey")]
  const own = { ...(ca === undefined ? {} : { ca }), ...(cert === undefined ? {} : { cert }), ...(key === undefined ? {} : { key }) }
  switch (mode) {
    case "disable":
    case "allow":
    case "prefer":
      return false
    case "require":
      return ca === undefined && !isSystem
        ? { ...own, rejectUnauthorized: false }
        : { ...own, rejectUnauthorized: true, checkServerIdentity: () => undefined }
    case "verify-ca":
      return { ...own, rejectUnauthorized: true, checkServerIdentity: () => undefined }
    case "verify-full":
      return { ...own, rejectUnauthorized: true }
    default:
      throw new AddressRefused(`sslmode=${mode} is none: use disable, require, verify-ca or verify-full`)
  }
}

/** A user of a container may have no name. */
const systemUser = (): string => {
  try {
    return userInfo().username
  } catch {
    return "postgres"
  }
}

/** Throws `AddressRefused` with the reason. */
export const addressOf = (text: string): Address => {
  // `postgres://user@/db`: the standard's addresses have a host.
  const whole = text.replace(/^(postgres(?:ql)?:\/\/(?:[^@/?#]*@)?)(?=[/?]|$)/, "$1localhost")
  let url: URL
  try {
    url = new URL(whole)
  } catch {
    throw new AddressRefused(`it is no address like postgres://user:password@host:5432/database; ${SIGNS}`)
  }
  const isTorn = url.hash !== "" || url.pathname.includes("@") || [...url.searchParams.keys()].some((name) => name.includes("@"))
  if (isTorn) throw new AddressRefused(`a sign of its user or password must be written another way: ${SIGNS}`)
  const query = (name: string): string | undefined => url.searchParams.get(name) ?? undefined
  const part = (encoded: string): string | undefined => {
    if (encoded === "") return undefined
    try {
      return decodeURIComponent(encoded)
    } catch {
      throw new AddressRefused("a % in it stands for no sign; a % itself is written as %25")
    }
  }
  const file = (name: string): string | undefined => {
    const path = query(name)
    if (path === undefined) return undefined
    try {
      return readFileSync(path, "utf8")
    } catch {
      throw new AddressRefused(`${name}: the file ${path} cannot be read`)
    }
  }
  const host = query("host") ?? part(url.hostname.replace(/^\[|\]$/g, "")) ?? "localhost"
  const user = query("user") ?? part(url.username) ?? process.env.PGUSER ?? systemUser()
  const isSystem = query("sslrootcert") === "system"
  const mode = query("sslmode") ?? (isSystem ? "verify-full" : (process.env.PGSSLMODE ?? "disable"))
  return {
    host,
    port: Number(query("port") ?? (url.port || DEFAULT_PORT)),
    user,
    password: query("password") ?? part(url.password),
    database: query("dbname") ?? part(url.pathname.slice(1)) ?? process.env.PGDATABASE ?? user,
    tls: host.startsWith("/") ? false : tlsOf(mode, file, isSystem),
  }
}

const common = ({ user, password, database, tls }: Address) => ({ user, database, ssl: tls, ...(password === undefined ? {} : { password }) })

/** For the driver of queries; a host that is no list is taken apart at its colons. */
export const queryOptions = (text: string): postgres.Options<Record<string, postgres.PostgresType>> => {
  const address = addressOf(text)
  const { host, port } = address
  return { ...common(address), host: [host] as never, port: [port] as never, ...(host.startsWith("/") ? { path: `${host}/.s.PGSQL.${port}` } : {}) }
}

/** For the driver of the stream. */
export const streamOptions = (text: string) => {
  const address = addressOf(text)
  return { ...common(address), host: address.host, port: address.port }
}
