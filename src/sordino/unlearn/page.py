def render_certificate(certificate):
    return "<!doctype html>"
