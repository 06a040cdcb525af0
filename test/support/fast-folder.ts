/** Where files of tests stand: in memory where there is plenty of it, as nobody asks for them after a crash of the machine. */
import { statfsSync } from "node:fs"
import { freemem, tmpdir } from "node:os"

const MEMORY = "/dev/shm"
/** Left free for everything else. */
const LEAST_BYTES = 6 * 1024 ** 3

export const fastFolder = (): string => {
  try {
    const { bavail, bsize } = statfsSync(MEMORY)
    return Math.min(bavail * bsize, freemem()) > LEAST_BYTES ? MEMORY : tmpdir()
  } catch {
    return tmpdir()
  }
}
