from django.contrib import admin
from django.shortcuts import render
from django.urls import path

from shop.models import Item


def index(request):
    return render(request, "index.html", {"items": Item.objects.order_by("-id")[:10], "title": "Newest"})


urlpatterns = [path("", index), path("admin/", admin.site.urls)]
