//! The pages for people, against what Nix and SQLite say of the same store.

#[allow(dead_code, unused_imports, reason = "each test binary uses its own part of the support")]
mod support;

use std::collections::{BTreeSet, VecDeque};

use support::server::Settings;
use support::store::{base_name, hash_of};
use support::{Kind, Response, Server, Store, lossy, noise, succeed, write};

/// What the attribute `href` says in each place of a page, unescaped.
fn links(page: &str) -> Vec<String> {
    let values = page.split(" href=\"").skip(1).filter_map(|after| after.split('"').next());
    values.map(|value| value.replace("&amp;", "&")).collect()
}

/// Where a link of the page at `base` leads, as a browser finds it.
fn resolve(base: &str, link: &str) -> String {
    let base = base.split('?').next().expect("it has a first part");
    let mut parts: Vec<&str> = base.split('/').collect();
    parts.pop();
    let (path, query) = link.split_once('?').map_or((link, None), |(path, query)| (path, Some(query)));
    for part in path.split('/') {
        match part {
            "." => {}
            ".." => {
                parts.pop();
            }
            part => parts.push(part),
        }
    }
    // What ends in a dot segment is a folder.
    let slash = if path.ends_with('.') { "/" } else { "" };
    let query = query.map_or(String::new(), |query| format!("?{query}"));
    format!("{}{slash}{query}", parts.join("/"))
}

fn is_page(answer: &Response) -> bool {
    answer.header("content-type").is_some_and(|kind| kind.starts_with("text/html"))
}

/// Follows every link that can be reached from `/`; the addresses of the pages. Each must lead somewhere.
fn crawl(server: &Server) -> BTreeSet<String> {
    let (mut seen, mut pages) = (BTreeSet::from(["/".to_owned()]), BTreeSet::new());
    let mut open: VecDeque<String> = ["/".to_owned(), "/search?q=e&drv=1".to_owned()].into();
    let mut connection = server.connect();
    while let Some(address) = open.pop_front() {
        let answer = connection.get(&address);
        assert_eq!(answer.status, 200, "{address}");
        if !is_page(&answer) {
            continue;
        }
        check_page(&address, &answer);
        for link in links(&answer.text()).iter().filter(|link| !link.starts_with('#')) {
            let target = resolve(&address, link);
            if seen.insert(target.clone()) {
                open.push_back(target);
            }
        }
        pages.insert(address);
        assert!(seen.len() < 2000, "the site has no end");
    }
    pages
}

/// What holds for every page.
fn check_page(address: &str, answer: &Response) {
    let policy = answer.header("content-security-policy").expect("a page has one");
    assert!(policy == "sandbox" || policy.starts_with("default-src 'none'; style-src 'sha256-"), "{policy}");
    assert_eq!(answer.header("x-content-type-options"), Some("nosniff"), "{address}");
    assert_eq!(answer.header("cache-control"), Some("no-store"), "{address}");
    let page = answer.text();
    for (part, count) in
        [("<html lang=\"en\">", 1), ("<main id=\"main\">", 1), ("<h1>", 1), ("<title>", 1), ("<header>", 1)]
    {
        assert_eq!(page.matches(part).count(), count, "{part} in {address}");
    }
    for part in ["<script", "style=\"", "javascript:", " onclick", "<img"] {
        assert!(!page.contains(part), "{part} in {address}");
    }
    // Everything that can be filled in says what it is.
    for field in page.split("<input id=\"").skip(1).filter_map(|after| after.split('"').next()) {
        assert!(page.contains(&format!("<label class=\"hidden\" for=\"{field}\">")), "{field} in {address}");
    }
}

#[test]
fn every_link_leads_somewhere_and_numbers_are_those_of_nix() {
    let store = Store::new(Kind::Chroot);
    let library = store.add("libhello-1.0", |tree| write(tree.join("lib/a b&c"), noise(1, 70_000)));
    let program = store
        .register("hello-2.12", &[&library, "self"], |folder, path| write(folder.join("bin/hello"), path));
    let user = store.register("user+of=hello", &[&program], |file, _| write(file, "uses it"));
    let (secret, public) = store.key("cache.example-1");
    let server = Settings::of(&store).keys(&[&secret]).start();
    let pages = crawl(&server);
    for path in [&library, &program, &user] {
        assert!(pages.contains(&format!("/path/{}", hash_of(path))), "{path} in {pages:?}");
    }
    assert!(pages.contains(&format!("/serve/{}/lib/", hash_of(&library))), "{pages:?}");

    let landing = server.get("/").text();
    assert!(landing.contains(&public) && landing.contains("extra-substituters = http://cache.example\n"));
    assert!(landing.contains("<dt>Store paths</dt><dd>3</dd>"), "{landing}");
    let size: i64 = store
        .open_database()
        .query_row("select sum(narSize) from ValidPaths", [], |row| row.get(0))
        .expect("it is Nix's schema");
    let shown = format!("<dd>{:.1} KiB</dd>", size as f64 / 1024.0);
    assert!(landing.contains(&shown), "{shown} is not in {landing}");

    let page = server.get(&format!("/path/{}", base_name(&program))).text();
    let closure = lossy(&succeed(store.nix("nix").args(["path-info", "--closure-size", &program])));
    let closure: u64 =
        closure.split_whitespace().last().and_then(|word| word.parse().ok()).expect("a number");
    let shown = format!("{:.1} KiB <small>2 paths</small>", closure as f64 / 1024.0);
    assert!(page.contains(&shown), "{shown} is not in {page}");
    assert!(page.contains("cache.example-1:") && page.contains(&program));
    let (refers, referred) = page.split_once("Is referred to by").expect("both lists are there");
    assert!(refers.contains(">libhello-1.0</a>") && !refers.contains(">user+of=hello</a>"));
    assert!(referred.contains(">user+of=hello</a>") && !referred.contains(">hello-2.12</a>"));

    // What became invalid has no page, and none of the others shows it.
    store.collect(&["--delete", &user]);
    for name in [hash_of(&user), "hello"] {
        let answer = server.get(&format!("/path/{name}"));
        assert!(answer.status == 404 && is_page(&answer) && answer.text().contains("action=\"../search\""));
        check_page(name, &answer);
    }
    let folder = server.get(&format!("/serve/{}/lib/", hash_of(&library))).text();
    assert!(folder.contains("<title>libhello-1.0/lib</title>"), "{folder}");
    assert!(!server.get(&format!("/path/{}", hash_of(&program))).text().contains("user+of=hello"));
    assert!(server.get("/search?q=user").text().contains("Nothing here"));
}

#[test]
fn a_search_finds_by_words_and_by_path_page_by_page() {
    let store = Store::new(Kind::Chroot);
    let folder = store.folder().join("files");
    let files: Vec<_> = (0..120).map(|number| folder.join(format!("package-{number:03}"))).collect();
    files.iter().for_each(|file| write(file, file.to_string_lossy().as_bytes()));
    succeed(store.nix("nix-store").arg("--add").args(&files));
    let other = store.add("Unlike", |file| write(file, "the rest"));
    let server = Server::of(&store);

    let (mut names, mut pages) = (Vec::new(), 0);
    let mut next = Some("/search?q=PACKAGE+-".to_owned());
    while let Some(address) = next.take() {
        let page = server.get(&address).text();
        assert!(page.contains(">120 store paths<"), "{page}");
        names.extend(page.split("\">package-").skip(1).map(|after| after[..3].to_owned()));
        let mut after = links(&page).into_iter().filter(|link| link.contains("&after="));
        next = after.next_back().map(|link| resolve("/search", &link));
        pages += 1;
    }
    let expected: Vec<String> = (0..120).map(|number| format!("{number:03}")).collect();
    assert_eq!((names, pages), (expected, 3));

    for words in ["unlike", hash_of(&other), &other.replace('/', "%2F")] {
        let page = server.get(&format!("/search?q={words}")).text();
        assert!(page.contains(&format!("path/{}\">Unlike</a>", hash_of(&other))), "{words}: {page}");
    }
    let page = server.get("/search?q=%3Cscript%3E%22+x").text();
    assert!(page.contains("value=\"&lt;script&gt;&quot; x\"") && page.contains("Nothing here"), "{page}");
    let page = server.get("/search").text();
    assert!(!page.contains("Nothing here") && page.contains("with derivations"));
    assert_eq!(server.get("/search?q=%").status, 404);

    // A path that is added is found at once.
    store.add("package-new", |file| write(file, "new"));
    assert!(server.get("/search?q=package-new").text().contains("One store path"));
}

#[test]
fn a_build_log_is_linked_where_there_is_one() {
    let store = Store::new(Kind::OtherDir);
    let (drv, output) = store.build("logged", "echo the builder speaks; echo x > $out", "");
    let server = Server::of(&store);
    let page = server.get(&format!("/path/{}", hash_of(&output))).text();
    let link = links(&page).into_iter().find(|link| link.starts_with("../log/")).expect("it has a log");
    let log = server.get(&resolve("/path/x", &link)).text();
    assert!(log.contains("the builder speaks"), "{log}");
    let of_drv = server.get(&format!("/path/{}", hash_of(&drv))).text();
    assert!(of_drv.contains("Build log") && page.contains(&format!("<a href=\"{}\">", hash_of(&drv))));
    // Derivations are found where they are wanted.
    assert!(!server.get("/search?q=logged").text().contains("logged.drv"));
    assert!(server.get("/search?q=logged&drv=1").text().contains("logged.drv"));
}

#[test]
fn a_locked_database_leaves_the_landing_page() {
    let store = Store::new(Kind::Chroot);
    store.add("present", |file| write(file, "contents"));
    let writer = store.open_database();
    let mode: String = writer
        .query_row("pragma journal_mode = delete", [], |row| row.get(0))
        .expect("nobody else has it open");
    assert_eq!(mode, "delete");
    let server = Server::of(&store);
    assert!(server.get("/").text().contains("Size as NARs"));
    writer.execute_batch("begin exclusive").expect("nobody else writes");
    let (mut landing, mut search) = (server.connect(), server.connect());
    landing.request("GET", "/", &[]);
    search.request("GET", "/search?q=present", &[]);
    let answer = search.read("GET");
    assert_eq!((answer.status, answer.header("retry-after").is_some()), (503, true));
    let answer = landing.read("GET");
    assert_eq!(answer.status, 200);
    assert!(answer.text().contains("nix.conf"));
    writer.execute_batch("rollback").expect("it is ours");
    assert!(server.get("/search?q=present").text().contains("One store path"));
}
