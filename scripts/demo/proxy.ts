/** The line between a school and the hub: a TCP proxy that can be cut and restored. */
import { connect, createServer, type Socket } from "node:net"

export interface Line {
  readonly port: number
  /** Ends every connection at once and takes no new one: what a school sees when the internet is gone. */
  readonly cut: () => void
  readonly restore: () => void
  readonly isCut: () => boolean
  readonly close: () => void
}

export const openLine = (listenPort: number, targetPort: number): Promise<Line> => {
  const sockets = new Set<Socket>()
  let isCut = false
  const keep = (socket: Socket): void => {
    sockets.add(socket)
    socket.on("error", () => socket.destroy())
    socket.on("close", () => sockets.delete(socket))
  }
  const endAll = (): void => {
    for (const socket of sockets) socket.destroy()
  }
  const server = createServer((inner) => {
    if (isCut) {
      inner.on("error", () => undefined)
      inner.destroy()
      return
    }
    const outer = connect(targetPort, "127.0.0.1")
    keep(inner)
    keep(outer)
    inner.on("close", () => outer.destroy())
    outer.on("close", () => inner.destroy())
    inner.pipe(outer)
    outer.pipe(inner)
  })
  return new Promise((resolve, reject) => {
    server.once("error", reject)
    server.listen(listenPort, "127.0.0.1", () =>
      resolve({
        port: listenPort,
        cut: () => {
          isCut = true
          endAll()
        },
        restore: () => {
          isCut = false
        },
        isCut: () => isCut,
        close: () => {
          server.close()
          endAll()
        },
      }),
    )
  })
}
