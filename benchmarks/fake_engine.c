// A very fast stand-in for an OpenAI-compatible inference server, to measure what stands in front of it.
//
//   fake_engine PORT        (0: the system chooses; the port is printed on standard output)
//
// One thread, epoll. The prompt's text steers the answer:
//   NTOK=<n>   tokens in the answer (default 64)
//   PACE=<ms>  time between tokens (default 0: as fast as they can be written, one write a token)
//   STEP=1     tokens leave on a clock that all streams share, as with continuous batching
//   BURST=1    the whole stream in one write
// Each token is " @T<16 hex digits>": CLOCK_MONOTONIC in nanoseconds at the moment it left, so that a client on the same
// machine can tell how long it was on its way. The answer's model is the one that was asked for.
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/epoll.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { MAX_TOKENS = 4096, MAX_HEAD = 64 << 10, MAX_BODY = 16 << 20, MAX_EVENTS = 512 };

#define EVENT_START "\"created\":1790000000,\"model\":\"%s\",\"choices\":["
#define ANSWER_ID "\"id\":\"chatcmpl-0123456789abcdef0123456789abcdef\","

struct bytes {
    char *data;
    size_t length, room;
};

struct connection {
    int fd;
    struct bytes in, out;
    size_t sent;  // of out
    bool streaming, step, usage;
    bool blocked;  // the socket took no more; the rest of `out` waits for it
    int tokens, next;
    uint64_t pace_ns, due_ns;
    int place;  // in the heap of due times, -1: not in it
    char model[128];
};

static int poller;
static struct connection **heap;
static int heap_length, heap_room;

static uint64_t now_ns(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec * 1000000000ull + time.tv_nsec;
}

static void append(struct bytes *bytes, const void *data, size_t length) {
    if (bytes->length + length > bytes->room) {
        bytes->room = (bytes->length + length) * 2;
        bytes->data = realloc(bytes->data, bytes->room);
        if (!bytes->data) abort();
    }
    memcpy(bytes->data + bytes->length, data, length);
    bytes->length += length;
}

static void print(struct bytes *bytes, const char *format, ...) {
    char text[4096];
    va_list arguments;
    va_start(arguments, format);
    int length = vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    append(bytes, text, length < (int)sizeof text ? (size_t)length : sizeof text - 1);
}

// --- streams that are due, earliest first -----------------------------------------------------------------------

static void heap_swap(int a, int b) {
    struct connection *first = heap[a];
    heap[a] = heap[b];
    heap[b] = first;
    heap[a]->place = a;
    heap[b]->place = b;
}

static void heap_settle(int place) {
    while (place > 0 && heap[(place - 1) / 2]->due_ns > heap[place]->due_ns) {
        heap_swap(place, (place - 1) / 2);
        place = (place - 1) / 2;
    }
    for (;;) {
        int least = place;
        for (int child = 2 * place + 1; child <= 2 * place + 2 && child < heap_length; child++)
            if (heap[child]->due_ns < heap[least]->due_ns) least = child;
        if (least == place) return;
        heap_swap(place, least);
        place = least;
    }
}

static void heap_add(struct connection *connection) {
    if (connection->place >= 0) return;
    if (heap_length == heap_room) {
        heap_room = heap_room ? heap_room * 2 : 64;
        heap = realloc(heap, heap_room * sizeof *heap);
        if (!heap) abort();
    }
    connection->place = heap_length;
    heap[heap_length++] = connection;
    heap_settle(connection->place);
}

static void heap_remove(struct connection *connection) {
    int place = connection->place;
    if (place < 0) return;
    connection->place = -1;
    struct connection *last = heap[--heap_length];
    if (last == connection) return;
    heap[place] = last;
    last->place = place;
    heap_settle(place);
}

// --- sending ----------------------------------------------------------------------------------------------------

static void watch(struct connection *connection, uint32_t events) {
    struct epoll_event event = {.events = events, .data.ptr = connection};
    epoll_ctl(poller, EPOLL_CTL_MOD, connection->fd, &event);
}

// Sends what stands in `out`; false when the peer is gone. A rest stays and waits for the socket.
static bool flush(struct connection *connection) {
    struct bytes *out = &connection->out;
    ssize_t count = send(connection->fd, out->data + connection->sent, out->length - connection->sent, MSG_NOSIGNAL);
    if (count < 0 && errno != EAGAIN) return false;
    if (count > 0) connection->sent += count;
    bool blocked = connection->sent < out->length;
    if (!blocked) connection->sent = out->length = 0;
    if (blocked != connection->blocked) watch(connection, blocked ? EPOLLIN | EPOLLOUT : EPOLLIN);
    connection->blocked = blocked;
    return true;
}

static void chunk(struct bytes *out, const struct bytes *content) {
    print(out, "%zx\r\n", content->length);
    append(out, content->data, content->length);
    append(out, "\r\n", 2);
}

static void stream_head(struct bytes *out) {
    print(out, "HTTP/1.1 200 OK\r\nserver: fake\r\ncontent-type: text/event-stream; charset=utf-8\r\n"
               "transfer-encoding: chunked\r\n\r\n");
}

static void stream_token(struct connection *connection) {
    static struct bytes event;
    event.length = 0;
    bool last = connection->next == connection->tokens - 1;
    print(&event, "data: {" ANSWER_ID "\"object\":\"chat.completion.chunk\"," EVENT_START, connection->model);
    print(&event, "{\"index\":0,\"delta\":{%s\"content\":\" @T%016llx\"},\"logprobs\":null,\"finish_reason\":%s}]}\n\n",
          connection->next == 0 ? "\"role\":\"assistant\"," : "", (unsigned long long)now_ns(),
          last ? "\"stop\"" : "null");
    chunk(&connection->out, &event);
    connection->next++;
    if (!last) return;
    event.length = 0;
    if (connection->usage) {
        print(&event, "data: {" ANSWER_ID "\"object\":\"chat.completion.chunk\"," EVENT_START, connection->model);
        print(&event, "],\"usage\":{\"prompt_tokens\":16,\"completion_tokens\":%d,\"total_tokens\":%d}}\n\n",
              connection->tokens, connection->tokens + 16);
    }
    print(&event, "data: [DONE]\n\n");
    chunk(&connection->out, &event);
    append(&connection->out, "0\r\n\r\n", 5);
    connection->streaming = false;
}

static void send_json(struct connection *connection, const struct bytes *body) {
    print(&connection->out, "HTTP/1.1 200 OK\r\nserver: fake\r\ncontent-type: application/json\r\n"
                            "content-length: %zu\r\n\r\n", body->length);
    append(&connection->out, body->data, body->length);
}

// --- answering --------------------------------------------------------------------------------------------------

static long number_after(const char *text, size_t length, const char *key, long otherwise) {
    const char *found = memmem(text, length, key, strlen(key));
    return found ? atol(found + strlen(key)) : otherwise;
}

static bool says(const char *text, size_t length, const char *key) {
    char spaced[64];
    const char *colon = strchr(key, ':');
    snprintf(spaced, sizeof spaced, "%.*s: %s", (int)(colon - key), key, colon + 1);
    return memmem(text, length, key, strlen(key)) || memmem(text, length, spaced, strlen(spaced));
}

static void note_model(struct connection *connection, const char *body, size_t length) {
    strcpy(connection->model, "fake");
    const char *key = memmem(body, length, "\"model\"", 7);
    const char *end = body + length;
    if (!key) return;
    const char *start = memchr(key + 7, '"', end - key - 7);
    const char *stop = start ? memchr(start + 1, '"', end - start - 1) : NULL;
    if (stop && stop - start - 1 < (long)sizeof connection->model)
        snprintf(connection->model, sizeof connection->model, "%.*s", (int)(stop - start - 1), start + 1);
}

static void answer_whole(struct connection *connection) {
    static struct bytes body;
    body.length = 0;
    print(&body, "{" ANSWER_ID "\"object\":\"chat.completion\"," EVENT_START, connection->model);
    print(&body, "{\"index\":0,\"message\":{\"role\":\"assistant\",\"content\":\"@T%016llx",
          (unsigned long long)now_ns());
    for (int token = 1; token < connection->tokens; token++) print(&body, " token%d", token);
    print(&body, "\"},\"logprobs\":null,\"finish_reason\":\"stop\"}],\"usage\":{\"prompt_tokens\":16,"
                 "\"completion_tokens\":%d,\"total_tokens\":%d}}", connection->tokens, connection->tokens + 16);
    send_json(connection, &body);
}

static void schedule(struct connection *connection, uint64_t from_ns) {
    uint64_t pace = connection->pace_ns;
    connection->due_ns = connection->step && pace ? (now_ns() / pace + 1) * pace : from_ns + pace;
    heap_add(connection);
}

static void answer_chat(struct connection *connection, const char *body, size_t length) {
    long tokens = number_after(body, length, "NTOK=", 64);
    connection->tokens = tokens < 1 ? 1 : tokens > MAX_TOKENS ? MAX_TOKENS : (int)tokens;
    note_model(connection, body, length);
    if (!says(body, length, "\"stream\":true")) {
        answer_whole(connection);
        return;
    }
    connection->next = 0;
    connection->streaming = true;
    connection->usage = says(body, length, "\"include_usage\":true");
    connection->pace_ns = number_after(body, length, "PACE=", 0) * 1000000ull;
    connection->step = number_after(body, length, "STEP=", 0);
    stream_head(&connection->out);
    bool burst = number_after(body, length, "BURST=", 0);
    do stream_token(connection);
    while (burst && connection->streaming);
    if (connection->streaming) schedule(connection, now_ns());
}

// What routers ask for before they send work.
static void answer_other(struct connection *connection, const char *line, size_t length) {
    static struct bytes body;
    body.length = 0;
    if (memmem(line, length, "/models", 7))
        print(&body, "{\"object\":\"list\",\"data\":[{\"id\":\"fake\",\"object\":\"model\",\"created\":1,"
                     "\"owned_by\":\"bench\",\"root\":\"fake\",\"max_model_len\":32768}]}");
    else if (memmem(line, length, "info", 4))
        print(&body, "{\"model_path\":\"fake\",\"served_model_name\":\"fake\",\"tokenizer_path\":\"fake\","
                     "\"is_generation\":true,\"tp_size\":1,\"dp_size\":1,\"version\":\"0\"}");
    else
        print(&body, "{\"status\":\"ok\"}");
    send_json(connection, &body);
}

// --- reading ----------------------------------------------------------------------------------------------------

// The bytes of a chunked body joined in `joined`: how far it reaches in `text`, 0 when it is not whole, -1 when bad.
static long read_chunks(const char *text, size_t length, struct bytes *joined) {
    size_t at = 0;
    joined->length = 0;
    for (;;) {
        const char *end = memmem(text + at, length - at, "\r\n", 2);
        if (!end) return 0;
        long size = strtol(text + at, NULL, 16);
        at = end + 2 - text;
        if (size < 0 || joined->length + size > MAX_BODY) return -1;
        if (at + size + 2 > length) return 0;
        append(joined, text + at, size);
        at += size + 2;
        if (size == 0) return at;
    }
}

// Answers the whole requests in `in`, as long as no stream is under way; false when the peer talks nonsense.
static bool take_requests(struct connection *connection) {
    static struct bytes joined;
    struct bytes *in = &connection->in;
    while (!connection->streaming && in->length) {
        char *end = memmem(in->data, in->length, "\r\n\r\n", 4);
        if (!end) return in->length < MAX_HEAD;
        size_t head = end + 4 - in->data;
        long length = 0;
        bool chunked = false;
        for (char *line = in->data; line < end; line = (char *)memmem(line, end + 2 - line, "\r\n", 2) + 2) {
            if (!strncasecmp(line, "content-length:", 15)) length = atol(line + 15);
            if (!strncasecmp(line, "transfer-encoding:", 18)) chunked = true;
            if (!strncasecmp(line, "expect:", 7) && in->length == head)
                print(&connection->out, "HTTP/1.1 100 Continue\r\n\r\n");
        }
        const char *body = in->data + head;
        long used = length;
        if (chunked) {
            used = read_chunks(body, in->length - head, &joined);
            if (used <= 0) return used == 0;
            body = joined.data;
            length = joined.length;
        }
        if (length < 0 || length > MAX_BODY) return false;
        if (in->length < head + used) return true;
        size_t line_length = (char *)memchr(in->data, '\r', head) - in->data;
        if (memmem(in->data, line_length, "/chat/completions", 17))
            answer_chat(connection, body, length);
        else
            answer_other(connection, in->data, line_length);
        in->length -= head + used;
        memmove(in->data, in->data + head + used, in->length);
    }
    return true;
}

static bool receive(struct connection *connection) {
    char data[64 << 10];
    for (;;) {
        ssize_t count = recv(connection->fd, data, sizeof data, 0);
        if (count == 0 || (count < 0 && errno != EAGAIN)) return false;
        if (count > 0) append(&connection->in, data, count);
        if (count < (ssize_t)sizeof data) break;
    }
    if (!take_requests(connection)) return false;
    return connection->out.length == 0 || flush(connection);
}

// --- the loop ---------------------------------------------------------------------------------------------------

static void accept_all(int listener) {
    int fd, on = 1;
    while ((fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC)) >= 0) {
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
        struct connection *connection = calloc(1, sizeof *connection);
        if (!connection) abort();
        connection->fd = fd;
        connection->place = -1;
        struct epoll_event event = {.events = EPOLLIN, .data.ptr = connection};
        epoll_ctl(poller, EPOLL_CTL_ADD, fd, &event);
    }
}

static void drop(struct connection *connection) {
    heap_remove(connection);
    close(connection->fd);
    free(connection->in.data);
    free(connection->out.data);
    free(connection);
}

static void send_due_tokens(void) {
    uint64_t now = now_ns();
    while (heap_length && heap[0]->due_ns <= now) {
        struct connection *connection = heap[0];
        heap_remove(connection);
        stream_token(connection);
        if (connection->streaming) schedule(connection, connection->pace_ns ? connection->due_ns : now + 1);
        if (!take_requests(connection) || !flush(connection)) drop(connection);
    }
}

static int listen_on(int port) {
    int listener = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0), on = 1;
    struct sockaddr_in address = {
        .sin_family = AF_INET, .sin_port = htons(port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t length = sizeof address;
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    if (bind(listener, (struct sockaddr *)&address, sizeof address) || listen(listener, 4096)) {
        perror("fake_engine");
        exit(1);
    }
    getsockname(listener, (struct sockaddr *)&address, &length);
    printf("%d\n", ntohs(address.sin_port));
    fflush(stdout);
    return listener;
}

int main(int count, char **arguments) {
    signal(SIGPIPE, SIG_IGN);
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    poller = epoll_create1(EPOLL_CLOEXEC);
    int listener = listen_on(count > 1 ? atoi(arguments[1]) : 0);
    struct epoll_event events[MAX_EVENTS], listening = {.events = EPOLLIN};
    epoll_ctl(poller, EPOLL_CTL_ADD, listener, &listening);
    for (;;) {
        struct timespec wait, *limit = NULL;
        if (heap_length) {
            uint64_t now = now_ns(), due = heap[0]->due_ns > now ? heap[0]->due_ns - now : 0;
            wait = (struct timespec){due / 1000000000, due % 1000000000};
            limit = &wait;
        }
        int ready = epoll_pwait2(poller, events, MAX_EVENTS, limit, NULL);
        if (ready < 0 && errno != EINTR) return 1;
        for (int i = 0; i < ready; i++) {
            struct connection *connection = events[i].data.ptr;
            if (!connection) {
                accept_all(listener);
                continue;
            }
            bool alive = !(events[i].events & EPOLLERR);
            if (alive && events[i].events & EPOLLOUT) alive = flush(connection);
            if (alive && events[i].events & (EPOLLIN | EPOLLHUP)) alive = receive(connection);
            if (!alive) drop(connection);
        }
        send_due_tokens();
    }
}
