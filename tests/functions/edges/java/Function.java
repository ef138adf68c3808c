// The function of `cargo xtask edges` in Java; ../README.md has the protocol. WORKERS says on what requests are handled:
// `fixed`, a pool of 64 threads, or `virtual`, a virtual thread for each, which takes a JDK of 21 or newer.

import com.sun.net.httpserver.HttpExchange;
import com.sun.net.httpserver.HttpServer;
import java.io.IOException;
import java.io.OutputStream;
import java.net.InetSocketAddress;
import java.net.URI;
import java.net.http.HttpClient;
import java.net.http.HttpRequest;
import java.net.http.HttpResponse;
import java.util.concurrent.CompletableFuture;
import java.util.concurrent.ExecutorService;
import java.util.concurrent.Executors;
import java.util.concurrent.ThreadLocalRandom;
import java.util.concurrent.TimeUnit;
import java.util.stream.Stream;

public class Function {
  private static final String CALLEE = System.getenv("CALLEE");
  private static final HttpClient CLIENT = client();
  private static final ExecutorService POOL = Executors.newFixedThreadPool(8);

  private static HttpClient client() {
    return HttpClient.newBuilder().version(HttpClient.Version.HTTP_1_1).build();
  }

  private static HttpRequest request(String id, boolean fail) {
    String name = String.format("%016x", ThreadLocalRandom.current().nextLong());
    HttpRequest.Builder request = HttpRequest.newBuilder(URI.create(CALLEE + "/" + name)).header("x-true-parent", id);
    return (fail ? request.header("x-fail", "1") : request).build();
  }

  private static int call(HttpClient client, String id, boolean fail) throws IOException, InterruptedException {
    return client.send(request(id, fail), HttpResponse.BodyHandlers.ofString()).statusCode();
  }

  private static int call(String id) throws IOException, InterruptedException {
    return call(CLIENT, id, false);
  }

  private static CompletableFuture<?> callAsync(String id) {
    return CLIENT.sendAsync(request(id, false), HttpResponse.BodyHandlers.ofString());
  }

  private static void carryOut(String id, String shape, OutputStream answer) throws Exception {
    switch (shape) {
      case "seq" -> {
        for (int i = 0; i < 3; i++) {
          call(id);
        }
      }
      case "par" ->
          CompletableFuture.allOf(Stream.generate(() -> callAsync(id)).limit(4).toArray(CompletableFuture[]::new)).get();
      case "timer" -> {
        for (int i = 0; i < 2; i++) {
          long delay = ThreadLocalRandom.current().nextLong(1_000, 10_000);
          // The JDK's timer thread hands over to its common pool, and that makes the call.
          CompletableFuture.supplyAsync(
                  () -> callAsync(id), CompletableFuture.delayedExecutor(delay, TimeUnit.MICROSECONDS))
              .thenCompose(made -> made)
              .get();
        }
      }
      case "pool" -> {
        for (int i = 0; i < 2; i++) {
          POOL.submit(() -> call(id)).get();
        }
      }
      case "after" -> {
        call(id);
        POOL.submit(
            () -> {
              Thread.sleep(5);
              return call(id);
            });
      }
      case "retry" -> {
        if (call(CLIENT, id, true) == 503) {
          call(id);
        }
      }
      case "stream" -> {
        for (int i = 0; i < 3; i++) {
          answer.write("a chunk\n".getBytes());
          answer.flush();
          call(id);
        }
      }
      case "fresh" -> {
        for (int i = 0; i < 2; i++) {
          call(client(), id, false);
        }
      }
      default -> {
      }
    }
  }

  private static void handle(HttpExchange exchange) throws IOException {
    String id = exchange.getRequestURI().getPath().substring(1);
    String query = exchange.getRequestURI().getQuery();
    String shape = query == null ? "" : query.substring(query.indexOf('=') + 1);
    exchange.getRequestBody().readAllBytes();
    try (exchange) {
      if (shape.equals("stream")) {
        exchange.sendResponseHeaders(200, 0);
        carryOut(id, shape, exchange.getResponseBody());
        exchange.getResponseBody().close();
      } else {
        carryOut(id, shape, null);
        byte[] done = "done\n".getBytes();
        exchange.sendResponseHeaders(200, done.length);
        exchange.getResponseBody().write(done);
      }
    } catch (Exception error) {
      error.printStackTrace();
    }
  }

  public static void main(String[] arguments) throws Exception {
    ExecutorService workers =
        "virtual".equals(System.getenv("WORKERS"))
            // By name, so that a JDK that has none compiles this, too.
            ? (ExecutorService) Executors.class.getMethod("newVirtualThreadPerTaskExecutor").invoke(null)
            : Executors.newFixedThreadPool(64);
    InetSocketAddress address =
        new InetSocketAddress(System.getenv("HOST"), Integer.parseInt(System.getenv("PORT")));
    HttpServer server = HttpServer.create(address, 128);
    server.createContext("/", Function::handle);
    server.setExecutor(workers);
    server.start();
  }
}
